"""What people run: replay, one detector, any two images, reports."""
