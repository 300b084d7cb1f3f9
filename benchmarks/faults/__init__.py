"""The failure drill: runs that are broken in every way must end like an undisturbed one."""
