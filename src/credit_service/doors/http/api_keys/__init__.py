"""The endpoints of API keys: make, list, revoke."""

from credit_service.doors.http.api_keys.create import create_api_key
from credit_service.doors.http.api_keys.list import list_api_keys
from credit_service.doors.http.api_keys.revoke import revoke_api_key

ENDPOINTS = (create_api_key, list_api_keys, revoke_api_key)
