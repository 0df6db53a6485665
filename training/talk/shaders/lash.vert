#version 330
#include "pose.glsl"

in vec3 place;
in vec2 along;  // along the lid; from root to tip

out vec2 on_lid;

void main() {
    on_lid = along;
    gl_Position = view_projection * vec4(posed(place, 1.0), 1.0);
}
