"""What a run can learn: `protocols.task.open_task` picks one of these."""
