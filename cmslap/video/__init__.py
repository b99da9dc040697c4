"""Videos: frames in and out in a stream, and networks adapted to one video and its scenes."""
