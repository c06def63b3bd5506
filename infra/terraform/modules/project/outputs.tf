output "number" {
  description = "Project number, part of the names of Google's own service agents."
  value       = data.google_project.this.number
}
