"""The endpoints of events: those that come in, and the announcements that go out."""

from credit_service.doors.http.events.list import list_events
from credit_service.doors.http.events.post import post_events

ENDPOINTS = (post_events, list_events)
