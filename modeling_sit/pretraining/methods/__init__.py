"""The pretraining methods, a file each."""

from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.methods.dino import DINO
from modeling_sit.pretraining.methods.ibot import IBOT
from modeling_sit.pretraining.methods.lejepa import LeJEPA
from modeling_sit.pretraining.methods.mae import MAE
from modeling_sit.pretraining.methods.moco_v3 import MoCoV3
from modeling_sit.pretraining.methods.simclr import SimCLR
from modeling_sit.pretraining.methods.simmim import SimMIM
from modeling_sit.pretraining.methods.sit import SiT

METHODS: dict[str, type[Method]] = {
    "sit": SiT,
    "simclr": SimCLR,
    "moco_v3": MoCoV3,
    "dino": DINO,
    "ibot": IBOT,
    "mae": MAE,
    "simmim": SimMIM,
    "lejepa": LeJEPA,
}
