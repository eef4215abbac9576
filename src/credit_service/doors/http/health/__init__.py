"""The endpoints of health: for people, load balancers, orchestrators and Prometheus."""

from credit_service.doors.http.endpoints import declared_in
from credit_service.doors.http.health import alive, detailed, metrics, ready

ENDPOINTS = declared_in(alive, detailed, ready, metrics)
