"""Parts of the study of unknown inputs."""
