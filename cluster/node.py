"""The old home of ``Task``, under which jobs that are still queued name it."""

from cluster.task import Task as Task
