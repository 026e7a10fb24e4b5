"""Many pictures: one row each, exactly once, resumable, on any number of workers; failures are rows too."""

from smearcount.batch.attempts import Failure, analyze_each
from smearcount.batch.jobs import BatchJob, Interrupted, Outcome, Stage
from smearcount.batch.run import run_batch
from smearcount.batch.work import PipelineMaker

__all__ = ["BatchJob", "Failure", "Interrupted", "Outcome", "PipelineMaker", "Stage", "analyze_each", "run_batch"]
