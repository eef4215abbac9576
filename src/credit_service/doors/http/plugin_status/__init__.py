"""The endpoints of plugin status: of one merchant, of many, and of all in sum."""

from credit_service.doors.http.endpoints import declared_in
from credit_service.doors.http.plugin_status import batch, get, totals

ENDPOINTS = declared_in(get, totals, batch)
