# Variables of every node of a cluster that serves; source it before `ray start`.
export RAY_AUTH_MODE=token
# HAProxy passes pictures straight to the replicas; the default proxy does so at a tenth of the rate.
export RAY_SERVE_ENABLE_HA_PROXY=1
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1
# A client that says nothing may hold a connection for so long: Ray's default is an hour.
export RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=960
# How often load is reported for autoscaling.
export RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S=1
export RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S=1
