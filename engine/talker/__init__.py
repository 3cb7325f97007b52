"""The engine as a Python object: pictures and sounds in memory in, frames out (docs/python.md)."""

from engine.talker.call import TalkingStream as TalkingStream
from engine.talker.talker import Talker as Talker
from engine.talker.video import Part as Part
from engine.talker.video import TalkingVideo as TalkingVideo
