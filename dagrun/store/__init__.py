"""What a run leaves on disk: its folder, its journal, its values and artifacts."""
