"""The endpoints of plugin status: of one merchant, of many, and of all in sum."""

from credit_service.doors.http.plugin_status.batch import get_plugin_statuses
from credit_service.doors.http.plugin_status.get import get_plugin_status
from credit_service.doors.http.plugin_status.totals import get_plugin_status_totals

ENDPOINTS = (get_plugin_status, get_plugin_status_totals, get_plugin_statuses)
