"""What Prometheus and Grafana need to watch a vLLM, and how far a start has come, as metrics."""
