"""The networks."""

from cmslap.models.lapsrn import LapSRN
from cmslap.models.ms_lapsrn import CMSLapSRN, MSLapSRN

__all__ = ["CMSLapSRN", "LapSRN", "MSLapSRN"]
