"""What a run can learn: `protocols.tasks.registry.open_task` picks one of these."""
