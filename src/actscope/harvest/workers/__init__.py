"""Crews: the workers of a harvest.

contract         interface of a crew, and its events
messages         messages between a crew and its workers
worker_process   a worker's process: receives orders, runs units, sends results
local            workers as processes on this machine
ray              workers as actors of a Ray cluster
"""
