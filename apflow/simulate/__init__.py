"""The sky, the camera and the player behind ``apflow replay``; the only code that reads truth."""
