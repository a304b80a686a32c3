"""Crews: the workers of a harvest, and where they run.

contract   what the harvest asks of a crew, and what it hears
messages   what is said between a crew and its workers
station    a worker's end: it waits for a unit, runs it, and says what came of it
local      processes of this machine
ray        actors of a Ray cluster
"""
