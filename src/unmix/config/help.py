"""Texts of the help that are not in docstrings."""

from __future__ import annotations

__all__ = ["ABOUT", "ABOUTS", "COMMAND_EXAMPLES", "EXAMPLES", "STUDY_EXAMPLES", "SUBMIT_EXAMPLES"]

ABOUT = "Self-supervised pretraining of vision models with image mixtures."

ABOUTS = {
    "pretrain": "Pretrain an encoder and evaluate it.",
    "bench": "Measure the training speed on this machine, by stage; takes every flag of pretrain.",
    "plan": "Predict time, memory and cost of a training; takes every flag of pretrain.",
    "import": "Make a run folder of the weights of another project, to compare it with runs.",
    "submit": "Pretrain in a job of SLURM, through submitit; takes every flag of pretrain.",
    "knn": "kNN accuracy of a run's encoder.",
    "probe": "Linear probe of a run's encoder.",
    "finetune": "Fine-tune a run's encoder, on all labels or a part of them.",
    "transfer": "Evaluate runs on other labeled data sets, in one table.",
    "predict": "Predict the classes of images with what finetune trained, into a CSV file.",
    "embed": "Write the features of images to a file, with their paths and labels.",
    "neighbors": "Draw a contact sheet of nearest neighbors, and list near-duplicates.",
    "export": "Write a run's encoder for another tool, and print how to load it.",
    "quality": "Measure encoders without labels; of several runs, say which one to keep.",
    "detect": "Train Faster R-CNN on a run's encoder, and measure its average precision.",
    "compare": "Compare runs in a table, figures and a report.",
    "plot": "Draw a figure of runs as PNG and SVG, and its numbers as CSV; see unmix plot list.",
    "watch": "Show the report of runs or of a study in a browser while they are trained.",
    "preview": "Draw images, and their mixtures or their augmented views.",
    "methods": "List the methods and the mixing rules that they support.",
    "recipes": "List the recipes, or print one.",
}

COMMAND_EXAMPLES = {
    "embed": """\
examples:
  unmix embed runs/a --out features.npz
  unmix embed runs/a --data FOLDER --out features.parquet --layer layer3 --dtype float16
  unmix embed net.safetensors --data cifar10 --data_dir DIR --split test --out features.npy

Give the same command to continue.""",
    "export": """\
examples:
  unmix export runs/a --to onnx --out encoder.onnx
  unmix export runs/a --to onnx --pixels --opset 18 --out encoder.onnx
  unmix export runs/a --to hub --license apache-2.0 --out my-encoder
  unmix export runs/a --to detectron2""",
    "neighbors": """\
examples:
  unmix neighbors runs/a --data FOLDER
  unmix neighbors runs/a --data FOLDER --query a.jpg b.jpg --k 16 --out found
  unmix neighbors runs/a --data FOLDER --threshold 0.99 --images 30

Give the same command to continue.""",
    "finetune": """\
examples:
  unmix finetune runs/a
  unmix finetune runs/a --labels 10% --select
  unmix finetune runs/a --labels 10% --select --from_scratch
  unmix finetune runs/a --data imagenet --data_dir DIR --label_list 1percent.txt --protocol vicreg

Give the same command to continue.""",
    "predict": """\
examples:
  unmix predict runs/a/finetune/NAME --data FOLDER --out classes.csv
  unmix predict runs/a/finetune/NAME --data FOLDER --split test --top 5 --out classes.csv

Give the same command to continue.""",
    "transfer": """\
examples:
  unmix transfer runs/a runs/b --data cifar10 photos FOLDER --data_dir DIR
  unmix transfer runs/* --data cifar10 FOLDER --protocols linear finetune --labels 10%

Give the same command to continue; what is measured is not measured again.""",
}
"""Examples of commands that do not take all settings of a run, by command."""

STUDY_EXAMPLES = """\
examples:
  unmix study first --vary mixture=none,unmix --method moco --data photos --seeds 0-5
  unmix study rates --vary lr=0.03,0.06 --vary mixture=none,unmix,imix --seeds 0-6 --jobs 2
  unmix study docs/evidence/augmentation-none.yaml --data_dir DIR
  unmix study show first

Give the same command to continue; finished runs are not repeated."""

SUBMIT_EXAMPLES = """\
examples:
  unmix submit --method mocov3 --data FOLDER --batch_size 4096 --nodes 2 --gpus 8 --cpus 10 \\
      --time 24:00:00 --partition gpu --slurm constraint=a100 --run runs/large
  unmix submit --method simclr --data FOLDER --gpus 4 --dry_run
  unmix submit --method simclr --data photos --device cpu --executor local

A job that SLURM warns of the end of its time saves the step, and is queued again; so is one that
is preempted. It goes on in the same run folder. The same command goes on with a run that was
canceled."""

EXAMPLES = """\
examples:
  unmix pretrain --method moco --data photos
  unmix pretrain --method moco --data cifar10 --data_dir DIR --IM --IM_type IM --g_prob 0.1
  unmix pretrain --method cmc --view YCbCr --unmix --unmix_prob 0.5 --beta 1.0
  unmix pretrain --config moco-v2-imagenet100 --data_dir DIR
  unmix pretrain --method moco --data FOLDER --size 64 --run runs/mine

The settings come from these sources, of which later ones override earlier ones: the defaults, the
recipe METHOD, the recipe METHOD-DATA if there is one (or --config), and the flags. Give the folder
of a run to resume it."""
