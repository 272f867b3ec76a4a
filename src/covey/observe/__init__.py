"""What a run tells: metrics and their names, records on disk, the console, curves and health."""
