"""Alert production as a PipelineTask, and what ``cluster/visit.sh`` needs around it."""
