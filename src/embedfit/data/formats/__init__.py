"""Files of every format as rows."""

from embedfit.data.formats.sniffing import Sniffed as Sniffed
from embedfit.data.formats.sniffing import sniff as sniff
