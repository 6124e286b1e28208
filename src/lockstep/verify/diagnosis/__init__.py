"""Why a claim failed, and how well one that holds shows the mapping."""
