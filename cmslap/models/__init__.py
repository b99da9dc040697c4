"""The networks: a file each, and a name in the one list below."""

from cmslap.models.lapsrn import LapSRN
from cmslap.models.masrn import MASRN
from cmslap.models.ms_lapsrn import CMSLapSRN, MSLapSRN
from cmslap.models.network import Network
from cmslap.models.rlrdsr import RLRDSR
from cmslap.models.vdsr import VDSR, AsymVDSR

# By the names that checkpoints and training configurations give them.
NETWORKS: dict[str, type[Network]] = {
    network.__name__: network for network in (CMSLapSRN, MSLapSRN, LapSRN, VDSR, AsymVDSR, MASRN, RLRDSR)
}

__all__ = ["MASRN", "NETWORKS", "RLRDSR", "VDSR", "AsymVDSR", "CMSLapSRN", "LapSRN", "MSLapSRN", "Network"]
