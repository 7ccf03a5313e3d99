"""The canvas components as Streamlit elements: attention grid and heat grid."""
