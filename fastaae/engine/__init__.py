"""From data to an updated weight: networks, the phases of a step, what a step draws. No files, no signals."""
