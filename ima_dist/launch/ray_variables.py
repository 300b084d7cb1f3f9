"""Environment variables that Ray reads: of a driver on any cluster, and of all processes of a cluster of our own."""

TRAINING = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

DRIVER = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray Train's controller runs in the driver, whose logging it would set up anew.
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}

OWN_CLUSTER = {
    "RAY_AUTH_MODE": "token",
    # Workers have an environment of their own, so processes that Ray starts in advance would never be used.
    "RAY_prestart_worker_first_driver": "0",
    # Ray's default, 15, leaves workers a thirtieth of a core beside other people's busy processes.
    "RAY_worker_niceness": "0",
}
