"""Deterministic networks that torchvision and MONAI lack; they draw no random numbers."""

from ppl_med.networks.additive_cnn import AdditiveCNN
from ppl_med.networks.classifiers import AlexNet, CompactCNN, LeNet, StridedCNN
from ppl_med.networks.combine import Combine
from ppl_med.networks.denoising_unet import DenoisingUNet
from ppl_med.networks.detectors import DetectorOutput, SmallDetector
from ppl_med.networks.encoder import ConvGaussian, GaussianEncoder
from ppl_med.networks.fc_densenet import FCDenseNet
from ppl_med.networks.hierarchical_unet import HierarchicalUNet
from ppl_med.networks.multiple_instance import AdditiveMIL, AttentionMIL, GatedAttention
from ppl_med.networks.pooled_cnn import PooledCNN
from ppl_med.networks.select_output import SelectOutput
from ppl_med.networks.unet import UNet

__all__ = [
    "AdditiveCNN",
    "AdditiveMIL",
    "AlexNet",
    "AttentionMIL",
    "Combine",
    "CompactCNN",
    "ConvGaussian",
    "DenoisingUNet",
    "DetectorOutput",
    "FCDenseNet",
    "GatedAttention",
    "GaussianEncoder",
    "HierarchicalUNet",
    "LeNet",
    "PooledCNN",
    "SelectOutput",
    "SmallDetector",
    "StridedCNN",
    "UNet",
]
