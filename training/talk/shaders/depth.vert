#version 330

in vec3 place;

uniform mat4 projection;

void main() {
    gl_Position = projection * vec4(place, 1.0);
}
