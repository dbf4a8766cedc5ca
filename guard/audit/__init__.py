"""A record of what the guard found and what was done with it, in which an edit shows.

Nothing is imported here, so that ``guard --help``, which has a command of this room, is quick.
"""
