"""What is done with finished runs, and before one: the functions behind the command line."""

from unmix.commands.bench import bench
from unmix.commands.checkpoints import load_method
from unmix.commands.compare import compare
from unmix.commands.demo import demo
from unmix.commands.detect import detect
from unmix.commands.embed import embed
from unmix.commands.export import export
from unmix.commands.finetune import finetune
from unmix.commands.import_weights import import_weights
from unmix.commands.knn import knn
from unmix.commands.neighbors import neighbors
from unmix.commands.pack import pack
from unmix.commands.plan import plan
from unmix.commands.plot import Plot, plot
from unmix.commands.predict import predict
from unmix.commands.preview import preview
from unmix.commands.probe import probe
from unmix.commands.quality import quality
from unmix.commands.study import show_study, study
from unmix.commands.submit import submit
from unmix.commands.transfer import transfer
from unmix.commands.watch import watch

__all__ = [
    "Plot",
    "bench",
    "compare",
    "demo",
    "detect",
    "embed",
    "export",
    "finetune",
    "import_weights",
    "knn",
    "load_method",
    "neighbors",
    "pack",
    "plan",
    "plot",
    "predict",
    "preview",
    "probe",
    "quality",
    "show_study",
    "study",
    "submit",
    "transfer",
    "watch",
]
