"""The timeline of a pipeline: as text, as a picture, and as a trace."""
