"""The endpoints of API keys: make, list, revoke."""

from credit_service.doors.http.api_keys import create, list, revoke
from credit_service.doors.http.endpoints import declared_in

ENDPOINTS = declared_in(create, list, revoke)
