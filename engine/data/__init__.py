"""The data types that flow through the engine, in the order of a generation."""

from __future__ import annotations

from engine.data.access import Access as Access
from engine.data.access import Credentials as Credentials
from engine.data.adapters import LoraUse as LoraUse
from engine.data.attention import AttentionChoice as AttentionChoice
from engine.data.attention import AttentionSite as AttentionSite
from engine.data.attention import TokenGrid as TokenGrid
from engine.data.budget import Budget as Budget
from engine.data.estimates import CardEstimate as CardEstimate
from engine.data.estimates import Estimates as Estimates
from engine.data.plan import Canvas as Canvas
from engine.data.plan import Plan as Plan
from engine.data.plan import PlanInputs as PlanInputs
from engine.data.plan import Seat as Seat
from engine.data.plan import Window as Window
from engine.data.request import AudioType as AudioType
from engine.data.request import Fit as Fit
from engine.data.request import Media as Media
from engine.data.request import Request as Request
from engine.data.request import Store as Store
from engine.data.request import Timing as Timing
from engine.data.result import Artifact as Artifact
from engine.data.result import Conditions as Conditions
from engine.data.result import Delivered as Delivered
from engine.data.result import Delivery as Delivery
from engine.data.result import Frames as Frames
from engine.data.result import Inputs as Inputs
from engine.data.result import Kept as Kept
from engine.data.result import Motion as Motion
from engine.data.result import Peak as Peak
from engine.data.result import Progress as Progress
from engine.data.result import Resumed as Resumed
from engine.data.stored import Stored as Stored
from engine.data.timeline import Cue as Cue
from engine.data.timeline import Loudness as Loudness
from engine.data.timeline import PlannedCue as PlannedCue
from engine.data.timeline import Seam as Seam
from engine.data.timeline import Seams as Seams
from engine.data.voices import Cut as Cut
from engine.data.voices import Link as Link
from engine.data.voices import Region as Region
from engine.data.voices import Speaker as Speaker
from engine.data.weights import Weights as Weights
