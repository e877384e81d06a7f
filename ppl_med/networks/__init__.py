"""Deterministic networks that torchvision and MONAI lack; they draw no random number."""

from ppl_med.networks.alexnet import AlexNet
from ppl_med.networks.compact import CompactCNN
from ppl_med.networks.encoder import GaussianEncoder
from ppl_med.networks.lenet import LeNet

__all__ = ["AlexNet", "CompactCNN", "GaussianEncoder", "LeNet"]
