"""Studies: conditions x paired seeds of any settings, trained, compared and described in words."""

from unmix.studies.analysis import StudyResults, read_study
from unmix.studies.conditions import Condition
from unmix.studies.plan import Study
from unmix.studies.running import run_study

__all__ = ["Condition", "Study", "StudyResults", "read_study", "run_study"]
