"""Object detection with a pretrained encoder as backbone: torchvision's Faster R-CNN."""

from unmix.detection.boxes import BoxImages
from unmix.detection.layouts import load_boxes
from unmix.detection.model import faster_rcnn
from unmix.detection.training import Detector, evaluate, train

__all__ = ["BoxImages", "Detector", "evaluate", "faster_rcnn", "load_boxes", "train"]
