"""POST /continue."""
