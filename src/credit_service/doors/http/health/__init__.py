"""The endpoints of health: for people, load balancers, orchestrators and Prometheus."""

from credit_service.doors.http.health.alive import get_health, livez
from credit_service.doors.http.health.detailed import get_health_detailed
from credit_service.doors.http.health.metrics import get_metrics
from credit_service.doors.http.health.ready import readyz

ENDPOINTS = (get_health, get_health_detailed, livez, readyz, get_metrics)
