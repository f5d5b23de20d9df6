"""Who chooses: the command line, the study, the workers, the samplers and the front."""
