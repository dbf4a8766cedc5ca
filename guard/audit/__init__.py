"""A record of what the guard found and what was done with it, in which an edit shows."""

from guard.audit.log import AuditCounts, AuditLog, read_key

__all__ = ["AuditCounts", "AuditLog", "read_key"]
