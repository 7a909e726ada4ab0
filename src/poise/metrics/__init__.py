"""What is counted, as Prometheus takes it and as samples."""
