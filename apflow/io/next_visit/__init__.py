"""Doors through which visits are announced: Kafka, a file, stdin, HTTP.

Each gives `Notice`s by `notices`, in order, and is told by `done` that what a
notice asks for is safely recorded; only then is it taken off the topic, or
answered.
"""

from apflow.io.next_visit.door import Door, Notice
from apflow.io.next_visit.http import HttpDoor
from apflow.io.next_visit.kafka import KafkaDoor
from apflow.io.next_visit.lines import LinesDoor

__all__ = ["Door", "HttpDoor", "KafkaDoor", "LinesDoor", "Notice"]
