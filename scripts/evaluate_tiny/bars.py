"""The limits that the embedded model must keep."""

from __future__ import annotations

from engine.evaluation.bars import Bar, likeness_bars

BARS = (
    Bar("detector against the truth", "detector/mean", least=0.95, open_=True),
    Bar("detector, worst skin class", "detector/worst_skin", least=0.95, open_=True),
    Bar("one person, correlation", "one/mean", least=0.90),
    Bar("two people, own voice", "two/own_mean", least=0.88),
    Bar("two people, own voice, the worst mouth", "two/own_worst", least=0.6),
    Bar("two people, the other's voice", "two/cross_mean", most=0.15, open_=True),
    Bar("binding margin", "two/margin", least=0.85),
    Bar("binding margin, voices swapped", "swapped/margin", least=0.82),
    Bar("the other's voice, voices swapped", "swapped/cross_mean", most=0.15, open_=True),
    Bar("lag within one frame, one person", "one/lag_share", least=0.95),
    Bar("lag within one frame, two people", "two/lag_share", least=0.95),
    Bar("silent people's movement against speakers'", "silent/relative", most=0.05),
    Bar("VAE, PSNR", "vae/psnr", least=29),
    Bar("VAE, PSNR of mouths", "vae/psnr_mouth", least=26),
    Bar("VAE, mean drift of brightness of 255", "vae/drift_mean", most=1),
    Bar("worst skin class below the best", "one/skin_gap", most=0.05),
    Bar("motion energy against the data's", "one/motion", least=0.5, most=1.5),
    Bar("turbo below standard, one person", "turbo/one/less", most=0.02),
    Bar("turbo below standard, two people", "turbo/two/less", most=0.02),
    Bar("turbo's forwards against standard's", "turbo/forwards", most=0.25),
    Bar("8 frames a second, direct, below 25", "fps/8_direct/less", most=0.05),
    Bar("12.5 frames a second, direct, below 25", "fps/12.5_direct/less", most=0.05),
    Bar("8 frames a second, native, below 25", "fps/8_native/less", most=0.05),
    Bar("long: worst window below the mean", "long/on/below", most=0.1),
    Bar("long: worst window below the mean, correction off", "long/off/below", most=0.1),
    Bar("long: mean Lab drift", "long/on/lab_drift", most=3, open_=True),
    Bar("long: mean Lab drift, correction off", "long/off/lab_drift", most=3, open_=True),
    Bar("long: change at seams against the median", "long/on/seam", most=1.5, open_=True),
    Bar("long: change at seams, correction off", "long/off/seam", most=1.5, open_=True),
    *likeness_bars("long", "long/on/worst"),
    Bar("recorded voices, own envelope", "real/own_mean", least=0.6),
    Bar("recorded voices, another's envelope", "real/cross_mean", most=0.2, open_=True),
    Bar("recorded voices, silence against speech", "real/silent", most=0.05),
    Bar("seconds of 81 frames, standard", "speed/standard_81_frames", most=6, open_=True),
    Bar("seconds of 6 s of two people, turbo", "speed/turbo_6_seconds", most=30, open_=True),
)

#: Of long voices (`evaluate_tiny talk --long-voice`).
LONG_BARS = tuple(
    bar
    for kind, name in (("long_one", "one person"), ("long_two", "two people"))
    for bar in (
        *likeness_bars(name, f"{kind}/worst"),
        Bar(f"{name}: lips, worst window below the mean", f"{kind}/sync_below", most=0.1),
        Bar(f"{name}: change at seams against the median", f"{kind}/seam", most=1.5, open_=True),
        Bar(f"{name}: frames more or less than asked for", f"{kind}/frames_off", most=0),
        Bar(f"{name}: seconds by which the sound track is longer or shorter", f"{kind}/sound_off", most=0.04),
        Bar(f"{name}: seconds by which the sound is late at the end", f"{kind}/sound_lag", most=0.001),
        Bar(f"{name}: CPU seconds of a window, second half against first", f"{kind}/pace/seconds_ratio", most=1.1),
        Bar(f"{name}: memory at the end against the third window", f"{kind}/pace/memory_ratio", most=1.05),
    )
)
