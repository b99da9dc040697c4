"""Videos: frames in and out in a stream, and networks adapted to one video and its scenes. Nothing heavy is imported
here; what needs PyAV is in the modules.
"""

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv")
