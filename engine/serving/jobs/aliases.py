"""Field names of other workers and tools, and the fields of this API that they mean, for hints in errors.

Names are compared without case, dashes, underscores and spaces: `imageUrl` is `image_url`. They were collected from the
public inputs of RunPod workers and hosted APIs, of ComfyUI nodes and of the command lines of MultiTalk, InfiniteTalk,
Wan and diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Fields of this API (an object has one of each tuple) -> their names elsewhere.
_ALIASES: dict[tuple[str, ...], str] = {
    ("reference_image",): (
        "image img picture photo pic portrait face faceimage avatar character reference refimage refimg "
        "conditionimage condimage firstframe startimage startframe initimage inputimage sourceimage "
        "driveimage"
    ),
    ("reference_video",): "video inputvideo sourcevideo drivingvideo condvideo refvideo",
    ("audio_1", "audio"): (
        "audio wav mp3 voice speech sound song vocal vocals drivenaudio drivingaudio condaudio person1 "
        "speaker1 audioleft leftaudio leftvoice"
    ),
    (
        "audio_2",
    ): "audio2 wav2 voice2 speech2 person2 speaker2 audioright rightaudio rightvoice secondaudio secondvoice",
    ("speakers",): "persons person characters audios speaker",
    ("prompt",): "text caption description positive positiveprompt inputprompt textprompt",
    ("negative_prompt",): "negative negprompt nprompt uncond negativetext negativetextprompt",
    ("sampling_steps",): (
        "steps numsteps inferencesteps numinferencesteps samplesteps samplersteps infersteps nsteps stepcount "
        "denoisingsteps ddimsteps"
    ),
    ("guidance_scale",): (
        "cfg cfgscale guidance textcfg textcfgscale textguidescale textguidancescale sampletextguidescale "
        "classifierfreeguidance sampleguidescale guidescale"
    ),
    ("audio_guidance_scale",): "audiocfg audiocfgscale audioscale audioguidescale sampleaudioguidescale audioguidance",
    ("num_frames",): (
        "length frames framenum framecount numframe nframes maxframes maxframenum videolength frameslength totalframes"
    ),
    ("fps",): "framerate videofps framespersecond outputfps targetfps",
    ("seed",): "baseseed noiseseed randomseed manualseed rngseed generator",
    ("resolution",): "size videosize imagesize framesize targetsize outputsize quality resolutionname",
    ("turbo",): "fast lightning distill distilled lcm turbomode fastmode",
    ("audio_type",): "audiomode audioorder audiomix",
    ("fit",): "resizemode fitmode cropmode",
    ("region_1", "region", "box"): "box bbox boundingbox facebox rect",
    ("region_1", "region", "mask"): "mask maskimage facemask",
    ("silence",): "silent mute muted",
    ("output",): "outputpath outputfile outputname savefile savename savepath outputfilename",
    ("filename",): "name file",
    ("sink",): "type kind destination storage target",
    ("health_check",): "ping health",
    ("action",): "mode task operation method",
    ("accessId",): "accesskey accesskeyid awsaccesskeyid keyid",
    ("accessSecret",): "secretkey secretaccesskey awssecretaccesskey accesssecretkey secret",
    ("sessionToken",): "token awssessiontoken securitytoken",
    ("bucketName",): "bucket s3bucket",
    ("endpointUrl",): "endpoint s3endpoint host url",
    ("region",): "regionname awsregion",
}
_FIELDS = {name: fields for fields, names in _ALIASES.items() for name in names.split()}

#: Advice on names that have no field of their own in this API -> those names. Only for fields of `input`.
_ADVICE: dict[str, str] = {
    "did you mean resolution? It is a name (action: capabilities lists them); the aspect ratio is the picture's": (
        "width height w h aspectratio ratio bucket"
    ),
    "did you mean num_frames? It is the seconds multiplied by fps": (
        "duration seconds durationseconds videoduration audioduration maxduration lengthseconds time"
    ),
    "it is set when the worker starts (MULTITALK_OVERRIDES); a job cannot change it": (
        "model modelname modelid modeltype checkpoint ckpt lora loras loraname lorascale quant quantization "
        "precision dtype device attention attentionmode offload forceoffload blockswap blockstoswap vae "
        "modelpath"
    ),
    'overrides: ["sampler=NAME"], with a name that action: capabilities lists': (
        "sampler samplername scheduler schedulername solver samplesolver"
    ),
    'overrides: ["sampler.shift=NUMBER"]': "shift sampleshift flowshift",
    'overrides: ["cache=teacache"]': "teacache useteacache stepcache cachetype",
    'overrides: ["cache.threshold=NUMBER"]': "teacachethresh teacachethreshold",
    'overrides: ["guidance=apg"]': "apg useapg",
    'overrides: ["continuation.frames=NUMBER"]': "motionframe motionframes overlap overlapframes motionframelatents",
    "a job makes one video; send one job for each video": "batchsize numvideos numoutputs numimages nsamples n",
    "it belongs beside input, not in it": "webhook webhookurl policy",
    'output: {"sink": "disk"}, if the worker allows it': "networkvolume savetovolume usenetworkvolume",
    "this is not a ComfyUI worker; docs/api.md lists the fields": "workflow graph",
    "leave it out: the video is always an MP4 (H.264)": "outputformat format videoformat codec",
    "leave it out: each voice is one person; speakers takes more of them": (
        "personcount numpersons numpeople numspeakers inputtype"
    ),
    "leave it out: it follows from the length": "streamingmode clipframes windowsize framewindowsize",
}
_ADVICE_FOR = {name: instead for instead, names in _ADVICE.items() for name in names.split()}

#: Prefixes and suffixes that only say how a file is passed: `inputImageUrl` is `image`.
_AFFIXES = re.compile(
    r"(?:input|source|src|ref|reference)?(.+?)(?:url|uri|link|href|base64|b64|path|file|filepath|data|src|bytes)*"
)


def find_alias(name: str, known_names: Iterable[str]) -> tuple[str, str]:
    """Return the field of `known_names` that `name` means (or ""), and advice for a name without a field (or "")."""
    known_names = tuple(known_names)
    plain = re.sub(r"[\s_.-]", "", name[:64].lower())
    for form in _forms(plain):
        for field in _FIELDS.get(form, ()):
            if field in known_names:
                return field, ""
    if "prompt" in known_names:
        for form in _forms(plain):
            if form in _ADVICE_FOR:
                return "", _ADVICE_FOR[form]
    return "", ""


def _forms(plain: str) -> list[str]:
    """Return a name, and the name without prefixes and suffixes; a digit that numbers a person is kept."""
    forms = [plain]
    number = re.fullmatch(r"(.*?)([12])(.*)", plain)
    counted = [(number[1] + number[3], number[2])] if number else []
    for base, digit in [(plain, ""), *counted]:
        match = _AFFIXES.fullmatch(base)
        core = match[1] if match else base
        # A name without a digit means the first person, so a 1 is dropped.
        forms += [core + digit] if digit == "2" else [core]
    return forms
