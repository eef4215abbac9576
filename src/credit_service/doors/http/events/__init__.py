"""The endpoints of events: those that come in, and the announcements that go out."""

from credit_service.doors.http.endpoints import declared_in
from credit_service.doors.http.events import list, post

ENDPOINTS = declared_in(post, list)
