"""Config of the encoded video, and of a source video whose people speak anew."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.ranges import X264_PRESET, one_of, within


@dataclass
class VideoConfig:
    """How the MP4 is encoded."""

    #: x264's constant rate factor, 0 (lossless) to 51 (smallest file).
    crf: int = field(default=18, metadata=within(0, 51))
    #: x264's speed preset, from the fastest encoding to the smallest file.
    preset: str = field(default="medium", metadata=X264_PRESET)
    #: AAC bits per second.
    audio_bitrate: int = field(default=192_000, metadata=within(32_000, 512_000))


@dataclass
class DubConfig:
    """What of a source video (`request.video`) is in the finished video (docs/dubbing.md)."""

    #: "sparse": each window sees one frame of the source, as in InfiniteTalk; "keep": all pixels outside the regions of
    #: the people who speak are the source's.
    mode: str = field(default="sparse", metadata=one_of("sparse", "keep"))
    #: Hard cuts of the source: "find": windows begin there anew; "none": windows pass over them.
    cuts: str = field(default="find", metadata=one_of("find", "none"))
    #: Least score of a cut, 0 to 100, as FFmpeg's filter scdet calculates it. A lower one finds more cuts, false ones
    #: too.
    cut_score: float = field(default=10.0, metadata=within(0.1, 100))
    #: Sound of the source: "voice": left out, only the new voices are heard; "under": mixed under them.
    sound: str = field(default="voice", metadata=one_of("voice", "under"))
    #: dub.sound=under: level of the source's sound in dB relative to its own.
    sound_level: float = field(default=-12.0, metadata=within(-60, 0))
    #: dub.mode=keep: width of the soft edge within each region, pixels of the video; in small regions it is narrower.
    feather: int = field(default=12, metadata=within(0, 512))
    #: dub.mode=keep: noise level, 0 to 1, down to which the source also leads the movement within the regions. 1: not
    #: at all; lower values follow heads more closely, and lips too.
    follow: float = field(default=0.8, metadata=within(0, 1))
