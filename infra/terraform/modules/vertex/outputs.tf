output "tensorboard" {
  description = "Resource name of the TensorBoard instance."
  value       = google_vertex_ai_tensorboard.this.name
}
