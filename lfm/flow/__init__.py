"""What training needs: path, loss, coupling, times."""
